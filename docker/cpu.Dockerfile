# mclst on CPUs, without PyTorch. From the repository's root:
#   docker build -f docker/cpu.Dockerfile -t mclst:cpu .
#   docker run --rm -v "$PWD:/data" mclst:cpu mclst-infer slide.svs --spots spots.csv

FROM python:3.11-slim-bookworm AS wheel
# The compiler builds the retrieval library; npm fetches the viewer of the pages, checked by SHA-512.
RUN apt-get update && apt-get install -y --no-install-recommends g++ npm && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:3.11-slim-bookworm
COPY constraints.txt /constraints.txt
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --constraint /constraints.txt "$(ls /wheels/*.whl)[cpu,openslide,parquet]" \
    && rm -r /wheels
RUN useradd --create-home mclst
USER mclst
# Speeds measured on this machine; mount a volume to keep them.
ENV MCLST_CACHE=/home/mclst/.cache/mclst
WORKDIR /data
CMD ["mclst"]

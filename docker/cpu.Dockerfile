# mclst on CPUs, without PyTorch. From the repository's root:
#   docker build -f docker/cpu.Dockerfile -t mclst:cpu .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" mclst:cpu mclst-infer slide.svs --spots spots.csv

FROM python:3.11-slim-bookworm AS wheel
# The compiler builds retrieval and JPEG decoding; npm fetches the viewer of the pages, checked by SHA-512.
RUN apt-get update && apt-get install -y --no-install-recommends g++ npm && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN pip install --no-cache-dir --constraint /source/constraints.txt setuptools \
    && pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels /source
# An installation may lack these parts; an image may not.
RUN for part in kernels/cpu/_cpu decoding/_jpeg_batch decoding/_jpeg_blocks openseadragon.min.js; do \
    python -m zipfile -l /wheels/*.whl | grep -q "$part" || { echo "the wheel lacks $part"; exit 1; }; done

FROM python:3.11-slim-bookworm
COPY constraints.txt /constraints.txt
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --constraint /constraints.txt "$(ls /wheels/*.whl)[cpu,openslide,parquet]" \
    && rm -r /wheels
# Speeds measured on this machine, and kept embeddings, of any user; mount a volume to keep them.
RUN useradd --create-home mclst && mkdir --mode 1777 /cache
ENV MCLST_CACHE=/cache/mclst MPLCONFIGDIR=/cache/matplotlib
USER mclst
WORKDIR /data
CMD ["mclst"]

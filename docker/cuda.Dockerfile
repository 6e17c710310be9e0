# mclst on NVIDIA GPUs: ONNX Runtime's CUDA provider and our CUDA retrieval. From the repository's root:
#   docker build -f docker/cuda.Dockerfile -t mclst:cuda .
#   docker run --rm --gpus all -v "$PWD:/data" mclst:cuda mclst-infer slide.svs --spots spots.csv
# With TensorRT, which NVIDIA licenses: --build-arg EXTRAS=gpu,tensorrt,openslide,parquet

ARG CUDA=13.0.1
ARG EXTRAS=gpu,openslide,parquet

FROM ubuntu:24.04 AS wheel
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    g++ npm python3-pip python3-venv && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN python3 -m venv /build && /build/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

# NVIDIA's "base" flavor: the driver comes from the host, and the CUDA and cuDNN libraries with the packages.
FROM nvidia/cuda:${CUDA}-base-ubuntu24.04
ARG EXTRAS
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    python3 python3-venv && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /constraints.txt
COPY --from=wheel /wheels /wheels
RUN python3 -m venv /opt/mclst \
    && /opt/mclst/bin/pip install --no-cache-dir --constraint /constraints.txt "$(ls /wheels/*.whl)[${EXTRAS}]" \
    && rm -r /wheels
ENV PATH=/opt/mclst/bin:$PATH
RUN useradd --create-home mclst
USER mclst
# Compiled kernels and measured speeds; mount a volume to keep them.
ENV MCLST_CACHE=/home/mclst/.cache/mclst
WORKDIR /data
CMD ["mclst"]

# mclst on NVIDIA GPUs: ONNX Runtime's CUDA provider and our CUDA retrieval. The driver has to be 580 or newer.
# From the repository's root:
#   docker build -f docker/cuda.Dockerfile -t mclst:cuda .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/data" mclst:cuda \
#       mclst-infer slide.svs --spots spots.csv
# With TensorRT, which NVIDIA licenses: --build-arg EXTRAS=gpu,tensorrt,openslide,parquet

ARG CUDA=13.0.1
ARG EXTRAS=gpu,openslide,parquet

FROM ubuntu:24.04 AS wheel
# The compiler builds retrieval and JPEG decoding; npm fetches the viewer of the pages, checked by SHA-512.
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    g++ npm python3-dev python3-venv && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN python3 -m venv /build \
    && /build/bin/pip install --no-cache-dir --constraint /source/constraints.txt setuptools \
    && /build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels /source
# An installation may lack these parts; an image may not.
RUN for part in kernels/cpu/_cpu decoding/_jpeg_batch decoding/_jpeg_blocks openseadragon.min.js; do \
    /build/bin/python -m zipfile -l /wheels/*.whl | grep -q "$part" || { echo "the wheel lacks $part"; exit 1; }; done

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
# Compiled kernels, measured speeds and kept embeddings, of any user; mount a volume to keep them.
RUN useradd --create-home mclst && mkdir --mode 1777 /cache
ENV MCLST_CACHE=/cache/mclst MPLCONFIGDIR=/cache/matplotlib
USER mclst
WORKDIR /data
CMD ["mclst"]

# docker build -t edgeprune . && docker run --rm -v "$PWD:/work" edgeprune --profile jetson-nano model.pt
FROM python:3.11-slim

# The CPU build of torch goes first, from its own index: the default one brings gigabytes of CUDA.
COPY constraints.txt /src/
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch==2.13.0

COPY pyproject.toml LICENSE /src/
COPY edgeprune /src/edgeprune
COPY device_profiles /src/device_profiles
COPY export /src/export
RUN pip install --no-cache-dir -c /src/constraints.txt '/src[demo]'

RUN useradd --create-home edgeprune
USER edgeprune
WORKDIR /work
ENTRYPOINT ["edgeprune"]

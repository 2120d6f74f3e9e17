# docker build -t edgeprune . && docker run --rm -v "$PWD:/work" edgeprune --profile jetson-nano model.pt
FROM python:3.11-slim

# Every file by its hash; torch alone by its version, from the index of CPU builds: the default one
# brings gigabytes of CUDA.
COPY requirements.lock /src/
RUN pip install --no-cache-dir --no-deps --require-hashes -r /src/requirements.lock \
 && pip install --no-cache-dir --no-deps --index-url https://download.pytorch.org/whl/cpu torch==2.13.0

COPY pyproject.toml LICENSE README.md /src/
COPY edgeprune /src/edgeprune
COPY device_profiles /src/device_profiles
COPY export /src/export
COPY examples/digits /src/examples/digits
RUN pip install --no-cache-dir --no-deps --no-build-isolation /src && pip check

RUN useradd --create-home edgeprune
USER edgeprune
WORKDIR /work
ENTRYPOINT ["edgeprune"]

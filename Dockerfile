# One image for all four services; docker-compose.yml says which one a container runs.
FROM python:3.11-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends build-essential cmake git \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY constraints.txt ./
RUN python -m venv /opt/modelledger && /opt/modelledger/bin/pip install --no-cache-dir --upgrade 'pip>=24'
COPY . .
# llama.cpp is compiled without AMX, see the Makefile.
RUN if [ "$(uname -m)" = x86_64 ]; then export CFLAGS='-mno-amx-tile -mno-amx-int8 -mno-amx-bf16'; fi \
    && export CXXFLAGS="$CFLAGS" \
    && /opt/modelledger/bin/pip install --no-cache-dir --constraint constraints.txt '.[all]' \
    && MODELLEDGER_CACHE=/opt/modelledger/cache /opt/modelledger/bin/python -m quantizer.converter

FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 modelledger \
    && install -d -o modelledger /data
COPY --from=build /opt/modelledger /opt/modelledger
ENV PATH=/opt/modelledger/bin:$PATH MODELLEDGER_CACHE=/opt/modelledger/cache PYTHONUNBUFFERED=1
USER modelledger
WORKDIR /data
VOLUME /data

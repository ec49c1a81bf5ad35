# dgbench with the versions that are tested. docs/install.md says how it is built and run.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build
# Where torch comes from: here the build for CPUs, which takes a gigabyte; .../whl/cu130 is one for GPUs, many times that.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=formats,dicom
WORKDIR /source
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY dgbench dgbench
COPY methods methods
COPY datasets datasets
COPY results results
RUN python3 -m venv /opt/dgbench \
 && /opt/dgbench/bin/pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" --constraint constraints.txt ".[${EXTRAS}]"

FROM python:${PYTHON}-slim
COPY --from=build /opt/dgbench /opt/dgbench
# Whoever it runs as (--user) may write to its home, where the cache lies, and beside the folders that are mounted.
RUN useradd --create-home --uid 1000 dgbench && mkdir /work && chmod 1777 /home/dgbench /work
ENV PATH=/opt/dgbench/bin:${PATH} HOME=/home/dgbench
USER 1000
WORKDIR /work
ENTRYPOINT ["dgbench"]
CMD ["--help"]

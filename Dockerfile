# Image of a node of a Ray cluster, head or worker; docs/cluster.md says how to use it.
#
#     docker build -t saff:cpu .
#     docker build -t saff:gpu --build-arg TORCH=https://download.pytorch.org/whl/cu130 .
#
# EXTRAS are those of pyproject.toml: --build-arg EXTRAS=coco,gcs
FROM rayproject/ray:2.60.0-py312-cpu
ARG TORCH=https://download.pytorch.org/whl/cpu
ARG EXTRAS=coco
WORKDIR /home/ray
COPY --chown=ray pyproject.toml constraints.txt README.md LICENSE saff-source/
COPY --chown=ray saff saff-source/saff
COPY --chown=ray jobs saff-source/jobs
RUN pip install --no-cache-dir --no-deps -c saff-source/constraints.txt --index-url "$TORCH" torch torchvision \
    && pip install --no-cache-dir -c saff-source/constraints.txt "./saff-source[$EXTRAS]"
USER 1000

# CUDA and CPU:      docker build -t monai-dpmm .
# CPU only, smaller: docker build -t monai-dpmm --build-arg TORCH_INDEX=URL .    (URL of PyTorch's index of CPU builds)
# A bundle's scans:  docker run --rm -v "$PWD:/data" monai-dpmm python -m monai.bundle run \
#                        --config_file BUNDLE/configs/inference.json --bundle_root BUNDLE --dataset_dir SCANS
#                    and with a GPU: docker run --gpus all ...
FROM python:3.11-slim

ARG TORCH_INDEX=
WORKDIR /opt/monai-dpmm
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN grep '^torch==' constraints.txt > torch.txt \
    && pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r torch.txt
COPY configs configs
COPY bundle bundle
COPY monai_dpmm monai_dpmm
RUN pip install --no-cache-dir -c constraints.txt ".[demo,dicom,scikit-learn]"

RUN useradd --create-home --uid 1000 user && mkdir /data && chown user /data
USER 1000
ENV PYTHONUTF8=1
WORKDIR /data
CMD ["monai-dpmm", "--help"]

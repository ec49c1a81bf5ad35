"""What training each way of using SAM costs at ViT-B: parameters, seconds a step, peak memory.

Run: OMP_NUM_THREADS=2 python benchmarks/sam.py [SIZE] [METHOD[,key=value...] ...]

Each method runs in a process of its own: ViT-B with random weights, which cost what SAM's cost, frozen where the method
freezes them; one batch again and again. `first` is the first step, `step` the least of those after it: where the
embeddings of a frozen encoder are kept, the first step computes them and the others read them.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time

SIZE, SLICES, STEPS = 512, 2, 3
METHODS = (
    "dapsam", "sam_decoder", "sam_decoder,augmentation=base", "sam_lora", "sam_adapter", "ma_sam",
    "ma_sam,neighbours=0", "desam", "cosam", "sam_full", "sam_full,checkpointing=true",
)  # fmt: skip


def measure(name: str, size: int) -> None:
    import torch

    from dgbench.method import Batch, resolve_hparams
    from dgbench.networks.embeddings import EmbeddingCache
    from dgbench.registry import get_method
    from dgbench.task import TaskInfo

    method_name, *pairs = name.split(",")
    cls = get_method(method_name)
    settings = dict(pair.split("=") for pair in pairs) | {"image_size": str(size), "batch_size": str(SLICES)}
    torch.manual_seed(0)
    method = cls(TaskInfo("prostate", ("prostate",), size, STEPS), resolve_hparams(cls, "prostate", settings)).train()
    method.freeze()
    if hasattr(method, "cache") and not any(p.requires_grad for p in method.image_encoder.parameters()):
        method.cache = EmbeddingCache("benchmark")
    made = method.configure()
    method.optimizers = made if isinstance(made, tuple) else (made,)
    channels = 2 * method.neighbours + 1
    image = torch.rand(SLICES, channels, size, size).repeat_interleave(3, 1)
    batch = Batch(image, (torch.rand(SLICES, 1, size, size) > 0.5).float())
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        method.update(batch)
        seconds.append(time.perf_counter() - start)
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    print(f"{name:32}{trained:12,}{seconds[0]:9.2f}{min(seconds[1:]):9.2f}{peak:10,.0f}", flush=True)


def main() -> None:
    size = int(sys.argv[1]) if len(sys.argv) > 1 else SIZE
    print(f"ViT-B, {size} px, batch {SLICES}\n{'method':32}{'trained':>12}{'first s':>9}{'step s':>9}{'peak MiB':>10}")
    for name in sys.argv[2:] or METHODS:
        with tempfile.TemporaryDirectory() as cache:
            environment = os.environ | {"DGBENCH_CACHE": cache}
            subprocess.run([sys.executable, __file__, "--one", name, str(size)], env=environment, check=False)


if __name__ == "__main__":
    if "--one" in sys.argv:
        measure(sys.argv[2], int(sys.argv[3]))
    else:
        main()

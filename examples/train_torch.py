"""Trains an autoencoder with robustsim as its loss, in plain torch.

python examples/train_torch.py --data photographs --output run
torchrun --nproc_per_node 2 examples/train_torch.py --data photographs --output run

In bfloat16, with gradient checkpointing, on one process or several. Started again, it goes on after the last epoch that
it has finished, to the same weights.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from autoencoder import Autoencoder, Photographs
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from robustsim import RobustSim
from robustsim.integrations import RobustSimilarity


def main(words: list[str] | None = None) -> torch.nn.Module:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="examples", help="folder of photographs")
    parser.add_argument("--output", type=Path, default=Path("run"), help="folder for the checkpoint")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=2, help="per process")
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args(words)

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if cuda else "gloo")

    metric = RobustSim.from_pretrained(device=device)
    distance = RobustSimilarity(metric, normalize=True)  # over all processes; the encoder is that of the loss
    data = Photographs(args.data, args.size, metric)
    sampler = DistributedSampler(data, num_replicas=world, rank=rank, seed=0)
    loader = DataLoader(data, args.batch_size, sampler=sampler)

    torch.manual_seed(0)
    model = Autoencoder().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    checkpoint, begin = args.output / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        begin = state["epoch"]
    parallel = DistributedDataParallel(model) if world > 1 else model  # the metric has nothing to train: it stays out

    for epoch in range(begin, args.epochs):
        sampler.set_epoch(epoch)
        parallel.train()
        losses = []
        for images, references in loader:
            images, references = images.to(device), references.to(device)
            with torch.autocast(device.type, torch.bfloat16):
                restored = parallel(images)
                loss = metric(restored, references).mean() + F.l1_loss(restored, images)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())

        parallel.eval()
        distance.reset()
        for images, references in loader:  # photographs of their own would be better
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
                distance.update(model(images.to(device)), references)
        mean, found = torch.stack(losses).mean(), distance.compute()
        if world > 1:
            dist.all_reduce(mean)
            mean /= world
        if rank == 0:
            print(f"epoch {epoch + 1}: loss {mean:.4f}, distance {found:.4f}", flush=True)
            args.output.mkdir(parents=True, exist_ok=True)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
            torch.save(state, f"{checkpoint}.new")
            os.replace(f"{checkpoint}.new", checkpoint)  # whole or not at all
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
    return model


if __name__ == "__main__":
    main()

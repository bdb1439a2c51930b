"""Trains an autoencoder with robustsim as its loss, with accelerate.

accelerate launch examples/train_accelerate.py --data photographs --output run
accelerate launch --multi_gpu --num_processes 2 examples/train_accelerate.py --data photographs --output run
torchrun --nproc_per_node 2 examples/train_accelerate.py --data photographs --output run --cpu

In bfloat16, with gradient checkpointing, on one process or several. Started again, it goes on after the last epoch that
it has finished, to the same weights.
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from autoencoder import Autoencoder, Photographs
from torch.nn import functional as F
from torch.utils.data import DataLoader

from robustsim import RobustSim
from robustsim.integrations import RobustSimilarity


def main(words: list[str] | None = None) -> torch.nn.Module:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="examples", help="folder of photographs")
    parser.add_argument("--output", type=Path, default=Path("run"), help="folder for checkpoints")
    parser.add_argument("--cpu", action="store_true", help="processes on CPUs, which accelerate does not find out")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=2, help="per process")
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args(words)

    accelerator = Accelerator(
        cpu=args.cpu,
        mixed_precision="bf16",
        # The order of an epoch depends on its number alone, so that it is the same after a resumption.
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
    )
    metric = RobustSim.from_pretrained(device=accelerator.device)
    distance = RobustSimilarity(metric, normalize=True)  # over all processes; the encoder is that of the loss
    data = Photographs(args.data, args.size, metric)

    set_seed(0)
    model = Autoencoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    # The metric has nothing to train: it stays out, and out of the checkpoints.
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, args.batch_size, shuffle=True))
    begin, finished = 0, sorted(args.output.glob("epoch-*"))
    if finished:
        accelerator.load_state(str(finished[-1]))
        begin = int(finished[-1].name.removeprefix("epoch-"))

    for epoch in range(begin, args.epochs):
        loader.set_epoch(epoch)
        model.train()
        losses = []
        for images, references in loader:
            with accelerator.autocast():
                restored = model(images)
                loss = metric(restored, references).mean() + F.l1_loss(restored, images)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.detach())

        model.eval()
        distance.reset()
        for images, references in loader:  # photographs of their own would be better
            with torch.no_grad():
                distance.update(model(images), references)
        mean, found = accelerator.reduce(torch.stack(losses).mean(), "mean"), distance.compute()
        accelerator.print(f"epoch {epoch + 1}: loss {mean:.4f}, distance {found:.4f}")
        accelerator.save_state(str(args.output / "unfinished"))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (args.output / "unfinished").rename(args.output / f"epoch-{epoch + 1:04d}")  # whole or not at all
        accelerator.wait_for_everyone()
    accelerator.end_training()
    return accelerator.unwrap_model(model)


if __name__ == "__main__":
    main()

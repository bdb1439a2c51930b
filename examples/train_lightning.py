"""Trains an autoencoder with robustsim as its loss, with Lightning.

python examples/train_lightning.py --data photographs --output run
python examples/train_lightning.py --data photographs --output run --devices 2

In bfloat16, with gradient checkpointing, on one device or several. Started again, it goes on after the last epoch that
it has finished, to the same weights.
"""

import argparse
from pathlib import Path

import lightning
import torch
from autoencoder import Autoencoder, Photographs
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler

from robustsim import RobustSim
from robustsim.integrations import RobustSimilarity


class Restoration(lightning.LightningModule):
    def __init__(self, folder: str, size: int, batch_size: int, lr: float) -> None:
        super().__init__()
        self.batch_size, self.lr = batch_size, lr
        self.autoencoder = Autoencoder()
        # Moves with this module, and is in no checkpoint of it.
        self.metric = RobustSim.from_pretrained(device="cpu", persistent=False)
        self.distance = RobustSimilarity(self.metric, normalize=True)  # over all processes; the encoder is that one's

        self.data = Photographs(folder, size, self.metric)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        # Lightning tells it the epoch, which it shuffles by: a run that goes on sees what an undisturbed one sees.
        sampler = DistributedSampler(self.data, self.trainer.world_size, self.trainer.global_rank)
        return DataLoader(self.data, self.batch_size, sampler=sampler)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(self.data, self.batch_size)  # photographs of their own would be better

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, references = batch
        restored = self.autoencoder(images)
        loss = self.metric(restored, references).mean() + F.l1_loss(restored, images)
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images, references = batch
        self.distance.update(self.autoencoder(images), references)
        self.log("distance", self.distance)  # Lightning computes and resets it

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.autoencoder.parameters(), lr=self.lr)


def main(words: list[str] | None = None) -> lightning.LightningModule:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="examples", help="folder of photographs")
    parser.add_argument("--output", type=Path, default=Path("run"), help="folder for checkpoints and the log")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=2, help="per device")
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args(words)

    lightning.seed_everything(0, verbose=False)
    model = Restoration(args.data, args.size, args.batch_size, args.lr)
    trainer = lightning.Trainer(
        devices=args.devices,
        strategy="ddp" if args.devices > 1 else "auto",
        precision="bf16-mixed",
        max_epochs=args.epochs,
        logger=CSVLogger(args.output, name="log"),
        callbacks=[  # `save_last` alone writes nothing after an epoch that was not the best
            ModelCheckpoint(args.output, filename="best", monitor="distance", enable_version_counter=False),
            ModelCheckpoint(args.output, filename="last", enable_version_counter=False),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    last = args.output / "last.ckpt"
    trainer.fit(model, ckpt_path=last if last.exists() else None)
    return model


if __name__ == "__main__":
    main()

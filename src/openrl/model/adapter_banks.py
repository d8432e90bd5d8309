"""Chooses how adapters are held and applied: grouped and by kernels on CUDA, else linear by linear."""

import torch

from openrl.model.base_model import BaseModel
from openrl.model.grouped_lora import GroupedBank, GroupedTrainingAdapters, StagedSink
from openrl.model.lora import AdapterBank, TrainingAdapters


def create_bank(model: BaseModel, num_slots: int) -> AdapterBank:
    """A bank for the model's linears, with no adapters in it."""
    if model.device.type != "cuda":
        return AdapterBank(model.linear_shapes, num_slots, model.dtype, model.device)
    # Triton comes with the CUDA builds of torch only.
    from openrl.model.lora_launch import TritonLora  # noqa: PLC0415

    return GroupedBank(model.linear_shapes, model.linear_groups, num_slots, model.dtype, model.device, TritonLora())


def training_adapters(bank: AdapterBank, sink: StagedSink, device: torch.device) -> TrainingAdapters:
    """The bank's adapters with gradients, which go to the sink."""
    if isinstance(bank, GroupedBank):
        return GroupedTrainingAdapters(bank, sink, device)
    return TrainingAdapters(bank, sink, device)

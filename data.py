"""Image-caption and audio-caption datasets that fetch and decode on the fly: what training starts with.

They do all their work again in every epoch. To do it once and train from memory, change the import; rows, samples and
batches stay the same:

    from data import ImageTextDataset, collate_images                                   # on the fly
    from in_memory_datasets import InMemoryImageTextDataset, collate_in_memory_images   # in memory

    dataset = InMemoryImageTextDataset(hf_dataset, max_samples=10000)
    loader = DataLoader(dataset, batch_size=32, shuffle=True, collate_fn=collate_in_memory_images)

`InMemoryImageTextDataset.plan(hf_dataset)` says beforehand what that takes in memory. The full guide is
IN_MEMORY_DATASETS_GUIDE.md.
"""

from in_memory_datasets import AudioTextDataset, ImageTextDataset, collate_audio, collate_images

__all__ = ["AudioTextDataset", "ImageTextDataset", "collate_audio", "collate_images"]

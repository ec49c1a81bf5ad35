"""Networks: what methods are built from.

In: batches of images (N, 3, H, W) in [0, 1]. Out: feature maps and logits; augmented batches; pretrained weights, read
without trust. Read `unet` first; `sam` and `tiny_vit` are the Segment Anything family, `weights` where it gets its
parameters from, `embeddings` what is kept of a frozen encoder, `augmentation` what every method sees besides its idea.
"""

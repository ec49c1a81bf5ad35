"""Networks: what methods are built from.

In: batches of images (N, 3, H, W) in [0, 1]. Out: feature maps and logits; augmented batches; pretrained weights. Read
`unet` first; `sam`, `tiny_vit` and `sam2` are the Segment Anything family, whose attention is mostly in `windows`;
`dino` has the encoders of DINOv2 and DINOv3; `weights` (what is known, and where it lies), `download` and `checkpoints`
(reading a file without trust) are where parameters come from; `embeddings` keeps what a frozen encoder computed;
`augmentation` is what every method sees besides its idea.
"""

"""Promptable models with random weights, small enough for tests, in the form that they are published in."""

from pathlib import Path

import torch
import transformers as t

SIDE = 128  # of the images that they encode


def sam(side: int = SIDE) -> tuple:
    size = {"image_size": side, "patch_size": 16}
    config = t.SamConfig(
        vision_config=t.SamVisionConfig(
            **size,
            hidden_size=16,
            output_channels=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            window_size=2,
            global_attn_indexes=[1],
            num_pos_feats=16,
        ),
        prompt_encoder_config=t.SamPromptEncoderConfig(**size, hidden_size=32),
        mask_decoder_config=t.SamMaskDecoderConfig(
            hidden_size=32, mlp_dim=64, num_attention_heads=2, iou_head_hidden_dim=32
        ),
    )
    images = t.SamImageProcessor(
        size={"longest_edge": side},
        pad_size={"height": side, "width": side},
        mask_size={"longest_edge": side // 4},
        mask_pad_size={"height": side // 4, "width": side // 4},
    )
    return t.SamModel(config), t.SamProcessor(image_processor=images)


def sam2(side: int = SIDE) -> tuple:
    backbone = t.Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[side, side],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        blocks_per_stage=[1, 1, 2, 1],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[7, 7],
    )
    vision = t.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[side // stride] * 2 for stride in (4, 8, 16)],
        fpn_hidden_size=32,
    )
    config = t.Sam2Config(
        vision_config=vision,
        prompt_encoder_config=t.Sam2PromptEncoderConfig(hidden_size=32, image_size=side, patch_size=16),
        mask_decoder_config=t.Sam2MaskDecoderConfig(
            hidden_size=32, mlp_dim=64, num_attention_heads=2, iou_head_hidden_dim=32
        ),
    )
    images = t.Sam2ImageProcessor(size={"height": side, "width": side})
    return t.Sam2Model(config), t.Sam2Processor(image_processor=images, target_size=side)


def sam3_tracker(side: int = 112) -> tuple:
    cells = side // 14
    backbone = t.Sam3ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side,
        patch_size=14,
        window_size=4,
        global_attn_indexes=[1],
        pretrain_image_size=56,
    )
    vision = t.Sam3VisionConfig(
        backbone_config=backbone,
        backbone_feature_sizes=[[cells * scale] * 2 for scale in (4, 2, 1)],
        fpn_hidden_size=32,
    )
    config = t.Sam3TrackerConfig(
        vision_config=vision,
        prompt_encoder_config=t.Sam3TrackerPromptEncoderConfig(
            hidden_size=32, image_size=side, patch_size=14
        ),
        mask_decoder_config=t.Sam3TrackerMaskDecoderConfig(
            hidden_size=32, mlp_dim=64, num_attention_heads=2, iou_head_hidden_dim=32
        ),
    )
    images = t.Sam3ImageProcessor(size={"height": side, "width": side})
    return t.Sam3TrackerModel(config), t.Sam3TrackerProcessor(image_processor=images, target_size=side)


BUILDERS = {"sam": sam, "sam2": sam2, "sam3_tracker": sam3_tracker}


def save(name: str, folder: Path) -> Path:
    """Write a model and its processor into a folder."""
    torch.manual_seed(0)
    model, processor = BUILDERS[name]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder

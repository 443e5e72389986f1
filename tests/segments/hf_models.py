"""Tiny models of transformers with random weights, one tensor to one tensor."""

import torch
import transformers

VOCABULARY = 50
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 4}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 0}
T5 = {"vocab_size": VOCABULARY, "d_model": 16, "num_layers": 3, "num_heads": 4, "d_ff": 32, "d_kv": 4}
OPT = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 32}
OPT |= {"max_position_embeddings": 64, "word_embed_proj_dim": 16}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
MODELS = {
    "gpt2": ("GPT2LMHeadModel", "GPT2", {**GPT2, "eos_token_id": 0}),
    "llama": ("LlamaForCausalLM", "Llama", GROUPED),
    "tied llama": ("LlamaForCausalLM", "Llama", {**GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3", GROUPED),
    "bert": ("BertForMaskedLM", "Bert", SIZES),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2", GROUPED),
    "mistral": ("MistralForCausalLM", "Mistral", GROUPED),
    "neox": ("GPTNeoXForCausalLM", "GPTNeoX", SIZES),
    "opt": ("OPTForCausalLM", "OPT", OPT),
    "modernbert": ("ModernBertForMaskedLM", "ModernBert", {**SIZES, **SPECIAL}),
    "deberta": ("DebertaV2ForMaskedLM", "DebertaV2", SIZES),
    "t5": ("T5EncoderModel", "T5", T5),
}


CACHING = ("gpt2", "llama", "qwen3", "gemma2", "mistral", "gpt_neox", "opt")


class OneTensor:
    """The forward of a model of transformers, of token ids alone."""

    def __init__(self, model):
        self.model = model

    def __call__(self, tokens):
        options = {"use_cache": False} if self.model.config.model_type in CACHING else {}
        return type(self.model).forward(self.model, input_ids=tokens, **options)[0]


def build(name: str, seed: int = 0):
    torch.manual_seed(seed)
    cls, config, options = MODELS[name]
    model = getattr(transformers, cls)(getattr(transformers, f"{config}Config")(**options))
    model.forward = OneTensor(model)
    return model


def tokens(batch: int, length: int, seed: int = 0):
    return torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))

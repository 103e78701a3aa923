"""What fails now and shouldn't: (family, form) -> why. Each is a strict xfail, so that mending it says so."""

from collections.abc import Iterator

from older import IS_OLDER

Known = dict[tuple[str, str], str]


def every(reason: str, names: str, *forms: str) -> Iterator[tuple[tuple[str, str], str]]:
    """Several families that fail for one reason."""
    return (((name, form), reason) for name in names.split(", ") for form in forms)


KNOWN: Known = {}
# In transformers 4 only.
IN_OLDER: Known = dict([
    *every("torch.export can't follow its choice of experts, which depends on data",
           "mixtral, mixtral with window, qwen2-moe, qwen3-moe, phimoe, glm4-moe, deepseek-v2, deepseek-v3",
           "sdpa", "eager"),
    *every("torch.export can't follow code that depends on data", "xmod, tapas, gpt-oss", "eager"),
    *every("while it is traced without decoder_attention_mask, its own code makes a mask of a column too many",
           "bart, mbart, pegasus, marian, blenderbot, blenderbot-small, m2m-100, plbart, bigbird-pegasus", "eager"),
    *every("the padding is read twice, by index, at a length of its own", "t5gemma", "sdpa", "eager"),
    *every("its own code adds a number to None where no cache is asked for", "imagegpt", "eager"),
    *every("where no cache is asked for, its own wrapper hands its forward an argument that it doesn't take",
           "siglip2 vision", "sdpa", "eager"),
    *every("where nothing is padded, its own code lets it look ahead", "doge", "sdpa"),
])  # fmt: skip
if IS_OLDER:
    KNOWN |= IN_OLDER

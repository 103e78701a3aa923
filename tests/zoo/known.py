"""What fails now and shouldn't: (family, form) -> why. Each is a strict xfail, so that mending it says so."""

KNOWN: dict[tuple[str, str], str] = {
    ("openai-gpt", "eager"): "a mask that multiplies the scores is not read",
    ("falcon grouped", "sdpa"): "key heads that are repeated in front of the rotary embedding are not folded",
    ("falcon grouped", "eager"): "key heads that are repeated in front of the rotary embedding are not folded",
    ("timesformer", "eager"): "the number of frames is traced as a quotient of the picture's sizes",
}

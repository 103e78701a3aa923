"""All families, by kind, and all cases that they make."""

import decoders
import encoders
import seq2seq
import speech
import vision
from family import Family

KINDS: dict[str, tuple[Family, ...]] = {
    "Encoders of text": encoders.FAMILIES,
    "Decoders of text": decoders.FAMILIES,
    "Encoder-decoders": seq2seq.FAMILIES,
    "Vision, and vision beside text": vision.FAMILIES,
    "Speech and time series": speech.FAMILIES,
}
FAMILIES = tuple(family for families in KINDS.values() for family in families)
CASES = tuple((family, form) for family in FAMILIES for form in family.forms)

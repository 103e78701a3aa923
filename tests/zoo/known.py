"""What fails now and shouldn't: (family, form) -> why. Each is a strict xfail, so that mending it says so."""

KNOWN: dict[tuple[str, str], str] = {}

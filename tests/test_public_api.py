import remixer


def test_every_public_name_exists_and_is_documented():
    for name in remixer.__all__:
        assert (getattr(remixer, name).__doc__ or "").strip() or name == "RULES", name


def test_no_public_function_hides_a_package():
    for name in ("rewrite", "passes", "mixers", "export", "evaluation"):
        assert getattr(remixer, name).__name__ == f"remixer.{name}"


def test_errors_are_subclasses_of_the_builtin_that_fits():
    assert issubclass(remixer.CaptureError, ValueError)
    assert issubclass(remixer.UnknownMixerError, LookupError)
    assert issubclass(remixer.SelectionError, LookupError)
    assert issubclass(remixer.UnsupportedAttentionError, ValueError)
    assert issubclass(remixer.PassError, RuntimeError)
    assert issubclass(remixer.ViewError, ValueError)

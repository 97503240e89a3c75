"""`natattn sample`: text from a trained arm."""

from natattn.cli.help import SAMPLE_HELP
from natattn.config.compose import validated
from natattn.config.messages import unknown_key
from natattn.errors import UserError


def sample(arguments: list[str]) -> int:
    """Print text that a trained arm generates."""
    if "--help" in arguments or "-h" in arguments:
        print(SAMPLE_HELP, end="")
        return 0
    from natattn.training.sampling import SampleSettings, sample_text

    values = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"{argument}: not understood. Use key=value.")
        if key not in SampleSettings.model_fields:
            raise UserError(unknown_key(key, sorted(SampleSettings.model_fields)))
        values[key] = value
    if "run" not in values:
        raise UserError("run: missing. Use run=FOLDER, the folder of a run.")
    for text in sample_text(validated(values, SampleSettings)):
        print(text, end="", flush=True)
    print()
    return 0

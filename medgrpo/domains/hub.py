"""Datasets of the Hugging Face Hub, with errors that say what to do instead."""

from typing import Any

from medgrpo.errors import InputError, ServiceUnreachable


def load_split(hub_id: str, subset: str, split: str, revision: str, *, title: str, give: str, own: str) -> Any:
    """The rows of one split.

    Args:
        hub_id: the dataset.
        subset: its configuration.
        split: the split.
        revision: branch, tag or commit.
        title: what the dataset should be, as "GSM8K".
        give: what can be given instead, with the setting.
        own: the id that such a dataset has.

    Raises:
        ServiceUnreachable: the Hub did not answer.
        InputError: the dataset has no such split.
    """
    import datasets

    try:
        return datasets.load_dataset(hub_id, subset, split=split, revision=revision)
    except (ConnectionError, OSError, datasets.exceptions.DatasetNotFoundError) as error:
        raise ServiceUnreachable(
            f"the dataset {hub_id} could not be fetched from the Hugging Face Hub ({type(error).__name__}). Check the "
            f"network and the name, or give {give}."
        ) from error
    except ValueError as error:
        raise InputError(f"the dataset {hub_id} is not {title}: {error}. Set data.hub_id={own}.") from error

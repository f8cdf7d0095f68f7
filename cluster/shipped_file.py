"""Which lines of a user's cluster file differ from the shipped file, beside those that users fill in or choose.

It does not say whether a difference is a mistake. `shipped_files.json` has the content of the shipped files, because
users edit the files themselves; `python -m cluster.shipped_file` writes it again after a change of a shipped file.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from cluster.quantity import quantity

FILES = ("ray_cluster.yaml", "kuberay/ray_cluster.yaml", "kuberay/ray_job.yaml", "kuberay/network_policy.yaml")
"""The shipped files; the last document of each is the one that names its kind."""

DATA = Path(__file__).with_name("shipped_files.json")

_FORMS = {
    "account": (r"\d{12}", "12 digits"),
    "region": (r"[a-z]{2}(?:-[a-z]+)+-\d", "such as eu-central-1"),
    "image": (r"[\w./-]+[:@](?!latest$)[\w.:-]+", "a name with a tag that never moves"),
    **{
        name: (f"{kind}-(?:[0-9a-f]{{8}}|[0-9a-f]{{17}})", f"{kind}- and 8 or 17 of the digits 0-9 and a-f")
        for name, kind in {
            "security-group": "sg",
            "private-subnet-a": "subnet",
            "private-subnet-b": "subnet",
            "ami-with-docker": "ami",
            "ami-with-docker-and-nvidia": "ami",
        }.items()
    },
}
"""What may stand in the place of an angle bracket: a pattern, and the same in words."""

_NUMBER = r"\d+(\.\d+)?"
_CHOSEN = {
    "cluster_name": r"[\w.-]+",
    "head_node_type|provider.availability_zone": ".+",  # check_cluster_file compares them with the other keys
    "max_workers|upscaling_speed|idle_timeout_minutes|available_node_types.*.(min|max)_workers": _NUMBER,
    "available_node_types.(cpu|gpu)_worker.resources.(CPU|GPU)": _NUMBER,
    "available_node_types.*.node_config.InstanceType": r"[a-z][\w-]*\.[\w-]+",
    "docker.image|*.containers.*.image": r"(?!.*\.dkr\.ecr\.)\S+[:@](?!latest$)[\w.:-]+",  # in another registry
    "(RayCluster|RayJob|NetworkPolicy).metadata.(name|generateName)|*.metadata.namespace": r"[a-z0-9][a-z0-9.-]*",
    "*.workerGroupSpecs.*.groupName": r"[a-z0-9-]+",
    "*.workerGroupSpecs.*.(min|max)Replicas|*.autoscalerOptions.idleTimeoutSeconds": _NUMBER,
    "*.(headGroupSpec|workerGroupSpecs).*.(requests|limits).(cpu|nvidia.com/gpu)": rf"{_NUMBER}m?",
    "*.rayVersion|RayJob.spec.entrypoint": "(?s:.+)",  # check_cluster_file reads them
    "RayJob.spec.(backoffLimit|activeDeadlineSeconds|entrypointNumCpus|entrypointNumGpus)": _NUMBER,
}
"""Places that the documentation lets users choose (`*`: any text), and the form of their values."""

_MAY_RISE = "*.Ebs.VolumeSize|*.(headGroupSpec|workerGroupSpecs).*.(memory|ephemeral-storage|sizeLimit)"
"""Sizes that users choose too, but a smaller one is named."""

_SPOT = (
    {"eks.amazonaws.com/capacityType": "SPOT"},
    {"karpenter.sh/capacity-type": "spot"},
    {"cloud.google.com/gke-spot": "true"},
)
"""The labels of spot machines that docs/tutorial-kubernetes.md names; all groups have the same one."""

_SECRET = re.compile(r"(\w*(?:SECRET|PASSWORD|TOKEN|ACCESS_KEY)(?!_PATH)\w*).+", re.DOTALL)
_BRACKET = re.compile(r"<([a-z-]+)>")
_NONE: Any = object()


def differences_of(documents: list[dict[str, Any]]) -> tuple[str, list[str]]:
    """The names of the shipped files that a file is compared with, and a line for each difference."""
    found, names = _Comparison(documents), []
    rest = list(documents)
    for name, shipped in json.loads(DATA.read_text()).items():
        if shipped[-1].get("kind") not in [each.get("kind") for each in documents]:
            continue
        names.append(name)
        for each in shipped:
            same = next((given for given in rest if given.get("kind") == each.get("kind")), _NONE)
            rest = [given for given in rest if given is not same]
            found.compare(each, same, each.get("kind", ""), each.get("kind", ""))
    for given in rest:
        found.compare(_NONE, given, "", str(given.get("kind")))
    return " and ".join(names) or "files", list(found.sentences())


class _Comparison:
    """Collects the differences of a file, and what stands in it in the place of each angle bracket."""

    def __init__(self, documents: list[dict[str, Any]]) -> None:
        self._head = documents[0].get("head_node_type")
        self._found: list[tuple[str, Any, Any]] = []  # place, shipped value, given value
        self._filled: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))  # value -> places

    def compare(self, shipped: Any, given: Any, place: str, shown: str) -> None:
        """Compares two values; `place` has the names of the shipped file, `shown` those of the given one."""
        has_types = place.endswith(("available_node_types", "workerGroupSpecs")) and shipped is not _NONE
        if has_types and isinstance(given, (dict, list)):
            self._node_types(_named(shipped), given, place, shown)
        elif place.endswith("nodeSelector") and given in _SPOT:
            self._filled["nodeSelector"][_text(given)].append(shown)
        elif isinstance(shipped, list) and isinstance(given, list) and _are_plain(shipped + given):
            self._texts([str(each) for each in shipped], [str(each) for each in given], shown)
        elif isinstance(shipped, (dict, list)) and type(shipped) is type(given):
            one, other = _named(shipped), _named(given)
            for key in dict.fromkeys([*one, *other]):
                below = [f"{above}.{key}" if above else str(key) for above in (place, shown)]
                self.compare(one.get(key, _NONE), other.get(key, _NONE), below[0], below[1])
        elif given == shipped and not isinstance(given, str):
            return
        elif not self._fits(shipped, given, shown) and not _is_chosen(place, shipped, given):
            self._found.append((shown, shipped, given))

    def _node_types(self, shipped: dict[Any, Any], given: Any, place: str, shown: str) -> None:
        """Compares each type of node with the shipped type of its name, else of its kind.

        Types may be added, removed and renamed.
        """
        names = {bool(_gpus(each)): key for key, each in shipped.items() if key != "head"}
        pairs = given.items() if isinstance(given, dict) else [(_name(each), each) for each in given]
        for name, each in pairs:
            is_head = name == self._head and "head" in shipped
            like = "head" if is_head else name if name in names.values() else names[_gpus(each)]
            self.compare(shipped[like], each, f"{place}.{like}", f"{shown}.{name}")

    def _texts(self, shipped: list[str], given: list[str], shown: str) -> None:
        """Compares lists of texts; there may be one subnet or several."""
        left, more, order = list(shipped), [], []
        are_subnets = shown.endswith("SubnetIds")
        for text in given:
            same = next((each for each in left if self._fits(each, text, shown)), None)
            if same is not None:
                left.remove(same)
                order.append(shipped.index(same))
            elif not (are_subnets and _pattern(shipped[0]).fullmatch(text)):
                more.append(text)
        for each in left if not are_subnets or not order else ():
            near = (get_close_matches(each, more, n=1, cutoff=0.5) or [_NONE])[0]
            more = [text for text in more if text is not near]
            self._found.append((shown, each, near))
        self._found += [(shown, _NONE, text) for text in more]
        if order != sorted(order):
            self._found.append((f"{shown}, the order", shipped, given))

    def _fits(self, shipped: Any, given: Any, shown: str) -> bool:
        """Whether a text is the shipped one with its brackets filled in; keeps what is in their places."""
        if not isinstance(shipped, str) or not isinstance(given, str):
            return False
        found = _pattern(shipped).fullmatch(" ".join(given.split()))
        for name, value in zip(_BRACKET.findall(shipped), found.groups() if found else (), strict=False):
            if value != f"<{name}>":
                self._filled[f"<{name}>"][value].append(shown)
        return bool(found)

    def sentences(self) -> Iterator[str]:
        """A line for each difference, and for each bracket that has several values."""
        for place, shipped, given in self._found:
            yield f"{place}: {self._difference(shipped, given)}"
        for name, values in self._filled.items():
            if len(values) > 1:
                several = "; ".join(f"{value} in {_some(places)}" for value, places in values.items())
                yield f"{name}: the shipped file has one value, this file has {several}"
        with_driver = self._filled["<ami-with-docker-and-nvidia>"]
        for image in self._filled["<ami-with-docker>"].keys() & with_driver.keys():
            yield f"{image}: one machine image for all; {_some(with_driver[image])} needs one with NVIDIA's driver"

    def _difference(self, shipped: Any, given: Any) -> str:
        if isinstance(shipped, str) and isinstance(given, str) and len(shipped.split()) > 1:
            words, others = self._with_values(shipped).split(), given.split()
            without, added = ([w for w in words if w not in others], [w for w in others if w not in words])
            if without or added:
                shipped, given = (" ".join(each) or _NONE for each in (without, added))
        if given is _NONE:
            return f"left out; the shipped file has {_text(shipped)}"
        if shipped is _NONE:
            return f"added: {_text(given)}"
        names = [name for name in dict.fromkeys(_BRACKET.findall(_text(shipped))) if name in _FORMS]
        forms = ", ".join(f"<{name}> is {_FORMS[name][1]}" for name in names)
        return f"{_text(given)}; the shipped file has {_text(shipped)}" + (f" ({forms})" if forms else "")

    def _with_values(self, text: str) -> str:
        """A shipped text with the values of this file in the place of its brackets."""
        return _BRACKET.sub(lambda found: next(iter(self._filled.get(found[0], {})), found[0]), text)


def _is_chosen(place: str, shipped: Any, given: Any) -> bool:
    if given is _NONE or isinstance(given, (bool, dict, list)):
        return False
    if _lies(place, _MAY_RISE) and shipped is not _NONE:
        try:
            return quantity(given) >= quantity(shipped)
        except ValueError:
            return False
    return any(_lies(place, places) and re.fullmatch(form, str(given)) for places, form in _CHOSEN.items())


def _lies(place: str, places: str) -> bool:
    return bool(re.fullmatch(places.replace(".", r"\.").replace("*", ".*"), place))


def _pattern(shipped: str) -> re.Pattern[str]:
    """What a shipped text may be when its brackets are filled in."""
    parts = _BRACKET.split(" ".join(shipped.split()))
    any_word = r"\S+"
    for number, part in enumerate(parts):
        parts[number] = f"(<{part}>|{_FORMS.get(part, (any_word,))[0]})" if number % 2 else re.escape(part)
    return re.compile("".join(parts))


def _named(values: Any) -> dict[Any, Any]:
    """A mapping as it is; a list by its elements' own names, else by their numbers."""
    if isinstance(values, dict):
        return values
    names = [_name(each) for each in values]
    if None in names or len(set(names)) < len(names):
        return dict(enumerate(values))
    return dict(zip(names, values, strict=True))


def _name(value: Any) -> str | None:
    keys = [key for key in ("groupName", "name", "key") if key in value] if isinstance(value, dict) else []
    return str(value[keys[0]]) if keys else None


def _gpus(node_type: Any) -> bool:
    return bool(re.search(r"'(GPU|nvidia\.com/gpu)': '?[1-9]", str(node_type)))


def _are_plain(values: list[Any]) -> bool:
    return not any(isinstance(each, (dict, list)) for each in values)


def _text(value: Any) -> str:
    text = _SECRET.sub(r"\1 (value not printed)", json.dumps(value, ensure_ascii=False, default=str, skipkeys=True))
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _some(places: list[str]) -> str:
    several = list(dict.fromkeys(places))
    return ", ".join(several[:2]) + (f" and {len(several) - 2} more" if len(several) > 2 else "")


def shipped_files() -> str:
    """The content of the shipped files, in JSON; the tag of the image is the user's."""
    root = Path(__file__).parents[1]
    texts = {name: re.sub(r"ficklenet:\d[\d.]*", "<image>", (root / name).read_text()) for name in FILES}
    return json.dumps({name: list(yaml.safe_load_all(text)) for name, text in texts.items()}, indent=1) + "\n"


if __name__ == "__main__":
    DATA.write_text(shipped_files())

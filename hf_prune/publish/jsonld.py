"""provenance.jsonld: the pruned dataset as Croissant 1.1, and where it comes from in PROV-O terms.

Croissant 1.1 ("Provenance Representation") puts `prov:wasDerivedFrom`, `prov:wasGeneratedBy` and
`prov:wasAttributedTo` on the dataset itself; the same is done here, and nothing else of PROV is invented.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import pyarrow as pa
from datasets import ClassLabel, Features, Image, LargeList, List, Value

from hf_prune.publish import scrub
from hf_prune.publish.provenance import OWN_NAMES

_HUB = "https://huggingface.co"
_TERMS = (
    "annotation",
    "arrayShape",
    "citeAs",
    "column",
    "containedIn",
    "equivalentProperty",
    "excludes",
    "extract",
    "field",
    "fileObject",
    "fileProperty",
    "fileSet",
    "format",
    "includes",
    "isArray",
    "isLiveDataset",
    "jsonPath",
    "key",
    "md5",
    "parentField",
    "path",
    "recordSet",
    "references",
    "regex",
    "repeated",
    "replace",
    "samplingRate",
    "sdVersion",
    "separator",
    "source",
    "subField",
    "transform",
    "value",
)
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "prov": "http://www.w3.org/ns/prov#",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "description": {"@container": "@language"},
    "name": {"@container": "@language"},
    **{term: f"cr:{term}" for term in _TERMS},
}
"""Appendix 1 of Croissant 1.1, with `prov`."""


def build(
    provenance: Mapping[str, Any],
    features: Features,
    digests: Mapping[str, str],
    *,
    repo_id: str | None = None,
    folder: str = "hf_prune",
    data_dir: str | None = None,
) -> dict[str, Any]:
    """Returns the JSON-LD document.

    Args:
        provenance (`Mapping[str, Any]`): what [`~hf_prune.publish.provenance.build`] returned.
        features (`datasets.Features`): the features of the rows.
        digests (`Mapping[str, str]`): SHA-256 of the files next to this one, by file name.
        repo_id (`str`, *optional*): `"org/name"` on the Hub; without it, only the files next to it are described.
        folder (`str`, *optional*, defaults to `"hf_prune"`): where these files lie in the repository.
        data_dir (`str`, *optional*): where the Parquet files of the rows lie in it.
    """
    result, origin = provenance["result"], provenance["source"]
    url = f"{_HUB}/datasets/{quote(repo_id)}" if repo_id else f"urn:sha256:{result['content_digest']}"
    name = repo_id.split("/")[-1] if repo_id else "pruned-dataset"
    license = [str(item) for item in _listed(origin["license"].get("license"))]
    document = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "@id": url,
        "name": name,
        "description": f"{result['rows']} of the {origin['rows']} rows of {origin['id'] or 'a dataset'}.",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "url": url,
        "version": "1.0.0",
        "datePublished": provenance["created"],
        "license": license or ["unknown"],
        "creator": {
            "@type": "sc:Organization",
            "name": repo_id.split("/")[0] if repo_id and "/" in repo_id else "unknown",
        },
        "keywords": ["dataset-pruning", "hf-prune"],
        **_prov(provenance),
        "distribution": _files(folder, digests, url if repo_id else None, data_dir, provenance["split"]),
        "recordSet": [_kept_ids()] + ([_rows(features)] if repo_id else []),
    }
    scrub.check(document, unread=(*OWN_NAMES, "recordSet", "@context"))
    return document


def _prov(provenance: Mapping[str, Any]) -> dict[str, Any]:
    origin, tool = provenance["source"], provenance["tool"]
    entity = {"@id": _source_iri(origin), "@type": "prov:Entity", "prov:label": origin["id"] or "Source dataset"}
    agent = {"@type": "prov:SoftwareAgent", "prov:label": f"{tool['name']} {tool['version'] or ''}".strip()}
    activity: dict[str, Any] = {
        "@type": "prov:Activity",
        "prov:label": "Dataset pruning",
        "prov:endedAtTime": provenance["created"],
        "prov:used": {"@id": entity["@id"]},
        "prov:wasAssociatedWith": agent,
    }
    if provenance["training"] is not None:
        activity["prov:wasInformedBy"] = _training(provenance["training"])
    return {"prov:wasDerivedFrom": entity, "prov:wasGeneratedBy": activity, "prov:wasAttributedTo": agent}


def _source_iri(origin: Mapping[str, Any]) -> str:
    if origin["id"] is None:
        return f"urn:sha256:{origin['content_digest']}"
    at = f"/tree/{origin['revision']}" if origin["revision"] else ""
    return f"{_HUB}/datasets/{quote(origin['id'])}{at}"


def _training(training: Mapping[str, Any]) -> dict[str, Any]:
    model = training["model"]
    run: dict[str, Any] = {
        "@id": f"urn:sha256:{training['trajectory_digest']}",
        "@type": "prov:Activity",
        "prov:label": f"Training of {model['class'] or 'a model'}",
    }
    if model["id"] is not None:
        at = f"/tree/{model['revision']}" if model["revision"] else ""
        run["prov:used"] = {
            "@id": f"{_HUB}/{quote(model['id'])}{at}",
            "@type": "prov:Entity",
            "prov:label": model["id"],
        }
    return run


def _files(
    folder: str, digests: Mapping[str, str], url: str | None, data_dir: str | None, split: str
) -> list[dict[str, Any]]:
    formats = {"kept_ids.parquet": "application/x-parquet", "provenance.json": "application/json"}
    files: list[dict[str, Any]] = [
        {
            "@type": "cr:FileObject",
            "@id": name,
            "name": name,
            "encodingFormat": formats[name],
            "sha256": digest,
            "contentUrl": f"{url}/resolve/main/{quote(folder)}/{name}" if url else name,
        }
        for name, digest in digests.items()
    ]
    if url:
        # a git repository has no single checksum; this value is what the Hub's own Croissant export writes
        repo = {
            "@type": "cr:FileObject",
            "@id": "repo",
            "name": "repo",
            "contentUrl": url,
            "encodingFormat": "git+https",
            "sha256": "https://github.com/mlcommons/croissant/issues/80",
        }
        rows = {
            "@type": "cr:FileSet",
            "@id": "rows",
            "name": "rows",
            "containedIn": {"@id": "repo"},
            "encodingFormat": "application/x-parquet",
            "includes": f"{data_dir}/{split}-*.parquet",
        }
        files += [repo, rows]
    return files


def _kept_ids() -> dict[str, Any]:
    field = _field("kept_ids/id", "id", {"fileObject": {"@id": "kept_ids.parquet"}}, {"dataType": "sc:Integer"})
    return {"@type": "cr:RecordSet", "@id": "kept_ids", "name": "kept_ids", "field": [field]}


def _rows(features: Features) -> dict[str, Any]:
    """Columns that Croissant has a type for; nested ones are left to the Parquet files."""
    fields = []
    for name, feature in features.items():
        kind = _data_type(feature)
        if kind is not None:
            fields.append(_field(f"default/{quote(name, safe='')}", name, {"fileSet": {"@id": "rows"}}, kind))
    return {"@type": "cr:RecordSet", "@id": "default", "name": "default", "field": fields}


def _field(identifier: str, column: str, origin: dict[str, Any], kind: dict[str, Any]) -> dict[str, Any]:
    source = origin | {"extract": {"column": column}}
    return {"@type": "cr:Field", "@id": identifier, "name": column, **kind, "source": source}


def _data_type(feature: Any) -> dict[str, Any] | None:
    if isinstance(feature, Image):
        return {"dataType": "sc:ImageObject"}
    if isinstance(feature, ClassLabel):
        return {"dataType": ["sc:Integer", "cr:Label"]}
    if isinstance(feature, List | LargeList):
        inner = _data_type(feature.feature)
        if inner is None or "isArray" in inner or not isinstance(feature.feature, Value):
            return None
        length = getattr(feature, "length", -1)
        return inner | {"isArray": True, "arrayShape": str(length)}
    if not isinstance(feature, Value):
        return None
    kind = feature.pa_type
    if pa.types.is_boolean(kind):
        return {"dataType": "sc:Boolean"}
    if pa.types.is_integer(kind):
        return {"dataType": "sc:Integer"}
    if pa.types.is_floating(kind):
        return {"dataType": "sc:Float"}
    if pa.types.is_temporal(kind):
        return {"dataType": "sc:DateTime"}
    return {"dataType": "sc:Text"} if pa.types.is_string(kind) or pa.types.is_large_string(kind) else None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]

"""Everything the parts of Dalang share: the Kubernetes API (`v1alpha1`) and what crosses Temporal (`contract`)."""

GROUP = "dalang.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

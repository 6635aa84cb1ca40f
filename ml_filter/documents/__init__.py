"""Documents in and out: readers, shards with manifests, rejects, sampling."""

"""The names of the paths to a backend."""

DIRECT = "direct"
BARE = "bare proxy"
GATEWAY = "gateway"
SPLICE = "blind splice"
ENDPOINT = "endpoint"
RESOLVED = "ResolveModel"
PATHS = (DIRECT, BARE, GATEWAY, SPLICE, ENDPOINT, RESOLVED)

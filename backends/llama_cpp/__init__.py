"""llama-cpp: a backend that serves `backend.Backend` for GGUF models, on xllamacpp."""

NAME = "llama-cpp"
VERSION = "0.1.0"

//! Where a model comes from: built in, a folder, a GGUF file, the hub, or made up.

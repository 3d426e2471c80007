"""The configuration files of a pipeline's parts: every field is honoured, has no effect here, or is refused by name.

`fields` and `noise` list the fields of the classes that are supported; a field of Stable Diffusion's parts that is in
no table is refused unless it is null, because what it changes would be lost. Transformers are built by diffusers from
all their fields. `reading` reads the files, `weights` the headers of safetensors, and `checks` puts them together, all
without torch.
"""

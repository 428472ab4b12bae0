"""The properties of a loaded model that its chat template shows."""

from corral.backend import backend_pb2 as pb

from .model import Model

_SAMPLE = [{"role": "user", "content": "Hello"}]
_THINKING = ("enable_thinking", "<think>", "reasoning_content")
_TOOL_MARKERS = (("<tool_call>", "</tool_call>"), ("<function_call>", "</function_call>"))


async def describe(model: Model) -> pb.ModelMetadataResponse:
    """Look at the template and ask the engine."""
    template = model.header.chat_template
    properties = await model.engine.properties()
    response = pb.ModelMetadataResponse(
        supports_thinking=any(word in template for word in _THINKING),
        rendered_template=await model.engine.apply_template(_SAMPLE) if template else "",
    )
    if any(properties.get("modalities", {}).values()):
        response.media_marker = properties.get("media_marker", "")
    for start, end in _TOOL_MARKERS:
        if start in template:
            response.tool_format.format_type = "json"
            response.tool_format.per_call_start = start
            response.tool_format.per_call_end = end
            response.tool_format.name_field = "name"
            response.tool_format.args_field = "arguments"
            break
    return response

"""ONNX graph passes: pure functions on a model, one file each, independent of any runtime.

    from segdeploy.graph.fp16 import cast_to_fp16
    half = cast_to_fp16(load_graph(Path("model.onnx")))

A precision belongs to the graph: fp16 is a cast, int8 is Q/DQ nodes (`placement` says where,
`calibrate` with which ranges, `qdq` inserts them). `image_input` and `label_output` add the
contracts last. `byte_kernels` is the one pass that runs when a session opens.
"""

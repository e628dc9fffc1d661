"""ONNX files become float graphs: primitives are matched to the kinds of ir.graph.

    file      the file, read and checked              -> Program
    program   nodes, constants, evaluation with NumPy
    rewrites  quantization is taken off, its integers and scales are kept
    probe     a small padded batch, on which every shape, mask and position is evaluated
    values    what an ONNX value stands for
    walk      goes through the nodes once and says what each value stands for
    rules     one function per operator
    attention, norms, pooling   rules of several operators together
    build     adds nodes to the graph
    outputs   which output is the model's answer, and its head
    integers  which integers of the file are kept
    checkpoint, modules, read   the directory around the file; graph, meta and proof

Names of nodes and initializers mean nothing here. Shapes, masks and positions are evaluated on the
probe and compared with what they must be, whatever computes them; reshapes and transposes run over
the numbers of elements, so that it is known where each one comes from; elementwise functions run
over sampled points, and the curve says which activation they are. In the end the graph must give
what the file gives, on the probe and on others.
"""

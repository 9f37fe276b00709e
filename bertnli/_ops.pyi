# Importing the module registers the operators of csrc/ops/bindings.cpp under torch.ops.bertnli; it has no names itself.

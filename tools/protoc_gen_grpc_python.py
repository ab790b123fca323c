"""The protoc plugin `grpc_python` for buf: grpcio-tools has it built in, buf wants it as a program.

Reads a CodeGeneratorRequest on standard input and answers with a CodeGeneratorResponse, as every protoc plugin does.
"""

import importlib.resources
import sys
import tempfile
from pathlib import Path

from google.protobuf.compiler import plugin_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc


def main() -> int:
    request = plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
    response = plugin_pb2.CodeGeneratorResponse(
        supported_features=plugin_pb2.CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL
    )
    with tempfile.TemporaryDirectory() as folder:
        descriptors = Path(folder, "descriptors.binpb")
        descriptors.write_bytes(FileDescriptorSet(file=request.proto_file).SerializeToString())
        out = Path(folder, "out")
        out.mkdir()
        services = {file.name for file in request.proto_file if file.service}
        wanted = [name for name in request.file_to_generate if name in services]
        if wanted:
            include = importlib.resources.files("grpc_tools") / "_proto"
            code = protoc.main(
                [
                    "protoc",
                    f"--descriptor_set_in={descriptors}",
                    f"--proto_path={include}",
                    f"--grpc_python_out={out}",
                    *wanted,
                ]
            )
            if code:
                response.error = f"grpc_tools.protoc failed with code {code}"
        for path in sorted(out.rglob("*.py")):
            response.file.add(name=str(path.relative_to(out)), content=path.read_text())
    sys.stdout.buffer.write(response.SerializeToString())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Model to protobuf and back; errors to gRPC status and back."""

"""The classic builder: a Dockerfile becomes an image (docs/design/build.md)."""

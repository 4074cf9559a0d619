"""The Helm chart and the manifests in deploy/, with a real Helm, the schemas of Kubernetes, and the real program."""

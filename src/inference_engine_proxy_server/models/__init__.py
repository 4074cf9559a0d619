"""Names of models as the operator defines them, and the changes that requests for a name undergo."""

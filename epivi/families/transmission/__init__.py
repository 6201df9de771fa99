"""The family `transmission`: levels on the logit scale, of which a share is heritable. Its files are the steps."""

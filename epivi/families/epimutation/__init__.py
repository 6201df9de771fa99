"""The family `epimutation`: discrete states that change along a lineage. Its files are the steps."""

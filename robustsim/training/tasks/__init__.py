"""What is trained: encoders against tampering, adapters on human judgements."""

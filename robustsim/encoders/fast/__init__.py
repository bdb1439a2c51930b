"""Faster ways through the encoders' modules: functions of the same parameters, which stay where they are."""

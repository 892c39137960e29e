"""Tests of the demo: its engine in virtual time, its server over a real socket, its report."""

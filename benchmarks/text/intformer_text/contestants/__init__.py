"""Programs that embed texts; see intformer_race.contestants.protocol."""

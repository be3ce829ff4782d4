"""A language model as proposer: prompt, client, reply, ladder, transcript. Others need `proposer` and `check`."""

-- +goose Up

-- When there were facts of a keyspace, without reading the facts themselves.
create index on keyledger.ledger_v1 (keyspace, sequence) include (owner, time) where not void and type <> 'owner.key_admitted';

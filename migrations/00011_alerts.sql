-- +goose Up

-- Alerts, folded from OPS: a row is made when one is raised, and ends when it is resolved.
create table keyledger.alerts_v1 (
    alert             text collate "C" primary key,
    keyspace          text collate "C" not null,
    owner             text collate "C" not null,
    key               text collate "C" not null,
    condition         text collate "C" not null,
    rule              text not null,
    rule_from         text not null,
    value             double precision not null,
    threshold         double precision not null,
    detail            text not null,
    raised_at         timestamptz not null,
    raised_sequence   bigint not null,
    resolved_at       timestamptz,
    resolved_sequence bigint,
    resolved_value    double precision,
    reason            text not null default ''
);
create index on keyledger.alerts_v1 (raised_sequence);
create index on keyledger.alerts_v1 (key, raised_sequence);
create index on keyledger.alerts_v1 (keyspace, owner, raised_sequence);
create index on keyledger.alerts_v1 (raised_sequence) where resolved_at is null;
create index on keyledger.alerts_v1 (resolved_at);
comment on table keyledger.alerts_v1 is 'Alerts that were raised, and when they were resolved';

create table keyledger.alert_rules_v1 (
    keyspace    text collate "C" not null,
    owner       text collate "C" not null,
    key         text collate "C" not null,
    resource    text collate "C" not null,
    rules       jsonb not null,
    set_at      timestamptz not null,
    set_by_type text not null,
    set_by_id   text not null,
    sequence    bigint not null,
    primary key (keyspace, owner, key, resource)
);
comment on table keyledger.alert_rules_v1 is 'Alert rules that were set, in place of those of the documents; owner, key and resource are empty where they are about all of them';

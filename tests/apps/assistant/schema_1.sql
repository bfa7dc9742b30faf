-- A conversations file as Puna wrote it before version tables (schema_version 1).
BEGIN TRANSACTION;
CREATE TABLE comparisons (
	id VARCHAR(36) NOT NULL, 
	user TEXT NOT NULL, 
	prompt JSON NOT NULL, 
	model_a TEXT NOT NULL, 
	model_b TEXT NOT NULL, 
	weight_version_a INTEGER, 
	weight_version_b INTEGER, 
	text_a TEXT NOT NULL, 
	text_b TEXT NOT NULL, 
	better VARCHAR(8), 
	created DOUBLE NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "comparisons" VALUES('9e15d063-9c4c-4b5a-8f67-7352dc8ab743','local','[{"role": "user", "content": "Which?"}]','a','b',NULL,NULL,'first','second','b',1.79602249126177096363e+09);
CREATE TABLE conversations (
	id VARCHAR(36) NOT NULL, 
	user TEXT NOT NULL, 
	title TEXT NOT NULL, 
	model TEXT NOT NULL, 
	system TEXT NOT NULL, 
	settings JSON NOT NULL, 
	leaf VARCHAR(36), 
	created DOUBLE NOT NULL, 
	updated DOUBLE NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "conversations" VALUES('b0971616-5e8f-427c-aa7d-3556259a0506','local','What is ice?','m','Be brief.','{"temperature": 0.5}','2b9d93b5-c1ee-4ba7-9934-2c905d207ec4',1.79602249122795820232e+09,1.79602249124659013755e+09);
CREATE TABLE feedback (
	message VARCHAR(36) NOT NULL, 
	rating INTEGER, 
	correction TEXT, 
	created DOUBLE NOT NULL, 
	PRIMARY KEY (message), 
	FOREIGN KEY(message) REFERENCES messages (id) ON DELETE CASCADE
);
INSERT INTO "feedback" VALUES('2b9d93b5-c1ee-4ba7-9934-2c905d207ec4',1,NULL,1.79602249125637602805e+09);
CREATE TABLE messages (
	id VARCHAR(36) NOT NULL, 
	conversation VARCHAR(36) NOT NULL, 
	parent VARCHAR(36), 
	role VARCHAR(16) NOT NULL, 
	content TEXT NOT NULL, 
	reasoning TEXT NOT NULL, 
	tokens JSON, 
	model TEXT, 
	weight_version INTEGER, 
	usage JSON, 
	finish_reason VARCHAR(16), 
	created DOUBLE NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(conversation) REFERENCES conversations (id) ON DELETE CASCADE, 
	FOREIGN KEY(parent) REFERENCES messages (id) ON DELETE CASCADE
);
INSERT INTO "messages" VALUES('7a167a1e-41ef-40ca-b3a7-10d040f13a09','b0971616-5e8f-427c-aa7d-3556259a0506',NULL,'user','What is ice?','',NULL,NULL,NULL,NULL,NULL,1.79602249123522090916e+09);
INSERT INTO "messages" VALUES('2b9d93b5-c1ee-4ba7-9934-2c905d207ec4','b0971616-5e8f-427c-aa7d-3556259a0506','7a167a1e-41ef-40ca-b3a7-10d040f13a09','assistant','Frozen water.','','[[1, "46", -0.1, []]]','m',1,'{"completion_tokens": 2}','stop',1.79602249124659013755e+09);
CREATE TABLE puna_meta (
	"key" VARCHAR(64) NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "puna_meta" VALUES('schema_version','1');
CREATE INDEX ix_conversations_user ON conversations (user);
CREATE INDEX ix_conversations_updated ON conversations (updated);
CREATE INDEX ix_comparisons_user ON comparisons (user);
CREATE INDEX ix_messages_conversation ON messages (conversation);
CREATE INDEX ix_messages_parent ON messages (parent);
COMMIT;

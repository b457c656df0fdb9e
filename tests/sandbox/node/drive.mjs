// Puts, lists and deletes with the official client, and prints what each call answered.
import { createHash } from "node:crypto";
import { Readable } from "node:stream";
import { BlobNotFoundError, BlobPreconditionFailedError, copy, del, head, list, put } from "@vercel/blob";

const PART = 8 * 1024 * 1024;
const film = Buffer.alloc(1000, 7);
const parts = [Buffer.alloc(PART, 1), Buffer.alloc(PART, 2), Buffer.alloc(1234, 3)];
const md5 = (bytes, form) => createHash("md5").update(bytes).digest(form);
const failure = async (promise) => promise.then(() => null, (error) => error);

const access = "public";
const options = { access, contentType: "video/mp4" };
const answers = {};

answers.put = await put("js/film.mp4", film, options);
answers.putMd5 = md5(film, "hex");
answers.exists = (await failure(put("js/film.mp4", film, options))).message;
answers.overwritten = await put("js/film.mp4", film, {
  ...options,
  allowOverwrite: true,
  addRandomSuffix: false,
  cacheControlMaxAge: 3600,
  ifMatch: answers.put.etag,
});
const stale = await failure(put("js/film.mp4", film, { ...options, ifMatch: '"stale"' }));
answers.staleIsPrecondition = stale instanceof BlobPreconditionFailedError;
answers.streamed = await put("js/streamed.mp4", Readable.from([film, film]), options);
answers.suffixed = await put("js/suffixed.mp4", film, { ...options, addRandomSuffix: true });
answers.copied = await copy(answers.put.url, "js/copied.mp4", { access });

answers.multipart = await put("js/long film.mp4", Buffer.concat(parts), { ...options, multipart: true });
answers.partsMd5 = md5(Buffer.concat(parts.map((part) => md5(part))), "hex");

answers.head = await head("js/film.mp4");
answers.headByUrl = await head(answers.multipart.url);
answers.list = await list({ prefix: "js/", limit: 2 });
answers.listRest = await list({ prefix: "js/", cursor: answers.list.cursor });
answers.folded = await list({ mode: "folded" });

answers.deleted = await del([answers.put.url, "js/streamed.mp4"]);
const gone = await failure(head("js/film.mp4"));
answers.goneIsNotFound = gone instanceof BlobNotFoundError;

console.log(JSON.stringify(answers));
